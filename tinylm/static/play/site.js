// The page of the site: each place for a model gets one, and its file is asked for at the first touch.

for (const el of document.querySelectorAll('.tinylm-play')) {
  const base = new URL('.', document.currentScript?.src ?? document.baseURI);
  const open = async () => {
    const answer = await fetch(new URL('demo.safetensors', base)).catch(() => null);
    if (!answer?.ok) throw new Error('The model file could not be loaded.');
    return answer.arrayBuffer();
  };
  const short = el.dataset.form === 'short'; // on the home page
  const state = { data: { kind: 'play', open, short, ...PLAY_ABOUT }, chosen: { ...PLAY_CHOSEN } };
  const model = {
    get: k => state[k],
    set: (k, v) => {
      state[k] = v;
    },
    on() {},
    off() {},
    save_changes() {},
  };
  render({ model, el });
}
