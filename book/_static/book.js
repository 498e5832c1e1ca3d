// Boxes that scroll sideways can be reached and scrolled by keyboard; what fits into its box is no stop for the tab key.
(() => {
  const BOXES = {
    "Table": ".pst-scrollable-table-container, .cell_output .output.text_html",
    "Code": ".cell_input pre, div.highlight pre",
    "Output": ".cell_output pre",
    "Formula": ".bd-article div.math, mjx-container[display='true']",
  };

  const reach = () => {
    const seen = new Set();
    for (const [kind, boxes] of Object.entries(BOXES).reverse()) {
      let number = 0;
      for (const box of document.querySelectorAll(boxes)) {
        number += 1;
        if (seen.has(box)) continue;
        seen.add(box);
        const scrolls = box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible";
        if (scrolls) {
          box.tabIndex = 0;
          box.setAttribute("role", "region");
          box.setAttribute("aria-label", `${kind} ${number}, scrolls sideways`);
        } else if (box.getAttribute("role") === "region") {
          for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
        }
      }
    }
  };

  addEventListener("load", async () => {
    reach();
    await window.MathJax?.startup?.promise;
    reach();
  });
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(reach, 200); });

  // Paper is white: in dark mode a page is printed in the light colours.
  const root = document.documentElement;
  let kept = null;
  const paper = printing => {
    if (printing && kept === null) {
      kept = root.dataset.theme;
      root.dataset.theme = "light";
    } else if (!printing && kept !== null) {
      root.dataset.theme = kept;
      kept = null;
    }
  };
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  matchMedia("print").addEventListener("change", event => paper(event.matches));
})();
