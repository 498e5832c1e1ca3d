// The search page: every section that holds all words of the query, the best first, each with a link to the section.
(() => {
  const escape = letter => letter.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

  // "over-sampling", "Oversampled" and "oversampling" are one word: no hyphens, no English ending, hyphens allowed.
  const pattern = word => {
    let letters = word.replace(/[^\p{L}\p{N}_]/gu, "");
    const stem = letters.replace(/(ings?|ed|es|s)$/, "");
    if (stem.length >= 4) letters = stem;
    return letters && new RegExp("(?<![\\p{L}\\p{N}])" + [...letters].map(escape).join("[-\u2010\u2011\u00ad]?"), "giu");
  };

  const score = ([page, anchor, chapter, title, prose, code], patterns) => {
    let sum = 0;
    for (const p of patterns) {
      const count = text => (text.match(p) || []).length;
      const own = 10 * (count(title) + count(chapter)) + Math.min(count(prose), 5) + Math.min(count(code), 1);
      if (!own) return 0;
      sum += own;
    }
    return sum;
  };

  // About 200 characters of the prose around the first hit, from word to word.
  const excerpt = (prose, patterns) => {
    const at = Math.min(...patterns.map(p => { const i = prose.search(p); return i < 0 ? Infinity : i; }));
    const start = at === Infinity || at < 80 ? 0 : prose.indexOf(" ", at - 80) + 1;
    const end = start + 200 >= prose.length ? prose.length : prose.lastIndexOf(" ", start + 200);
    return (start ? "… " : "") + prose.slice(start, end) + (end < prose.length ? " …" : "");
  };

  const element = (name, text = "", attributes = {}) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.textContent = text;
    return made;
  };

  const marked = (text, patterns) => {
    const p = element("p", "", { className: "context" });
    const any = new RegExp(patterns.map(r => r.source).join("|"), "giu");
    let last = 0;
    for (const hit of text.matchAll(any)) {
      p.append(text.slice(last, hit.index), element("mark", hit[0]));
      last = hit.index + hit[0].length;
    }
    p.append(text.slice(last));
    return p;
  };

  const query = (new URLSearchParams(location.search).get("q") || "").trim();
  const place = document.getElementById("search-results");
  for (const input of document.querySelectorAll('form.bd-search input[name="q"]')) input.value = query;
  const patterns = query.split(/\s+/).map(pattern).filter(Boolean);
  if (!place || !patterns.length) return;
  const found = SECTIONS.map(section => [score(section, patterns), section]).filter(([sum]) => sum);
  found.sort(([a], [b]) => b - a);
  const many = found.length > 50 ? `${found.length} sections, the first 50 are shown` : `${found.length} sections`;
  place.replaceChildren(element("p", found.length ? `Found in ${found.length === 1 ? "1 section" : many}.`
    : `No section holds all of: ${query}`, { className: "search-summary", role: "status" }));
  const list = element("ul", "", { className: "search" });
  for (const [, [page, anchor, chapter, title, prose]] of found.slice(0, 50)) {
    const item = element("li");
    item.append(element("a", title, { href: `${page}#${anchor}` }));
    if (chapter !== title) item.append(element("span", ` ${chapter}`, { className: "chapter" }));
    if (prose) item.append(marked(excerpt(prose, patterns), patterns));
    list.append(item);
  }
  place.append(list);
})();
