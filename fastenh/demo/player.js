// A comparison is one sound file of two channels, before and after, so that both are always at the same position.
// The switch decides which of the two is heard, in both ears.
(() => {
  let context;

  const chosen = (player) => Number(player.closest(".comparison").querySelector("input:checked").value);

  function connect(player) {
    context ??= new AudioContext();
    const splitter = new ChannelSplitterNode(context, { numberOfOutputs: 2 });
    context.createMediaElementSource(player).connect(splitter);
    player.versions = [0, 1].map((version) => {
      const gain = new GainNode(context, { gain: version === chosen(player) ? 1 : 0, channelCount: 1 });
      splitter.connect(gain, version).connect(context.destination);
      return gain;
    });
  }

  // "play" does not bubble: it is caught on its way down
  document.addEventListener("play", ({ target }) => {
    if (!target.matches(".comparison audio")) return;
    if (!target.versions) connect(target);
    context.resume();
  }, true);

  document.addEventListener("change", ({ target }) => {
    if (!target.matches(".comparison input")) return;
    const player = target.closest(".comparison").querySelector("audio");
    player.versions?.forEach((gain, version) => {
      gain.gain.setTargetAtTime(version === chosen(player) ? 1 : 0, context.currentTime, 0.005); // without a click
    });
  });
})();
