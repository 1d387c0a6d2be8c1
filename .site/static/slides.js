// Every slide is made smaller until it fits the screen, its folds opened.
const HEIGHT = 700;

const fit = slide => {
  const folds = [...slide.querySelectorAll("details")];
  folds.forEach(fold => fold.open = true);
  const words = slide.matches(".section, .prediction, .answer, .list, .fold");
  for (let size = words ? 40 : 36; size > 11; size -= 1) {
    slide.style.fontSize = `${size}px`;
    slide.querySelectorAll("img").forEach(image => image.style.maxHeight = `${size * 19}px`);
    slide.querySelectorAll(".explorer, .explorer table").forEach(box => box.style.fontSize = `${size * 0.7}px`);
    const wide = [slide, ...slide.querySelectorAll("pre")].some(box => box.scrollWidth > box.clientWidth);
    if (slide.scrollHeight <= HEIGHT && !wide) break;
  }
  folds.forEach(fold => fold.open = false);
};

addEventListener("load", async () => {
  await Reveal.initialize({
    hash: true, slideNumber: "c/t", width: 1240, height: HEIGHT, margin: 0.03, center: false,
    transition: "none", viewDistance: 1000, plugins: [RevealNotes],
  });
  document.querySelectorAll(".slides section").forEach(fit);
  Reveal.layout();
  document.body.dataset.ready = "true";
});
