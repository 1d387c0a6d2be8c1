// What Sphinx leaves undone. Pages can be read without this script.

// From a folder, search results cannot show excerpts: a browser fetches nothing from file://.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What is wider than the page can be scrolled with the keyboard.
const wide = "pre, .formula, .output.text_html, .table-wrapper";
const reachable = () => document.querySelectorAll(wide).forEach(box => {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
});

addEventListener("load", () => {
  document.querySelectorAll("[role=listbox]:not([aria-label])").forEach(list =>
    list.ariaLabel = list.closest(".explorer").ariaLabel);
  document.querySelectorAll("details").forEach(fold => fold.addEventListener("toggle", reachable));
  reachable();
});
addEventListener("resize", reachable);
