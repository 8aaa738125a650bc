// Light or dark: what was chosen here before, else what the system says. Read before the page is drawn: nothing flashes.
"use strict";
(() => {
  const NAME = "atelier-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const ofSystem = () => (system.matches ? "dark" : "light");

  function chosen() {
    try { return localStorage.getItem(NAME); } catch { return null; } // a browser may forbid it: the system decides
  }

  function apply() {
    const theme = chosen() || ofSystem();
    document.documentElement.dataset.theme = theme;
    document.querySelector("meta[name='theme-color']")?.setAttribute("content", theme === "dark" ? "#171a18" : "#f6f3ec");
    document.getElementById("theme")?.setAttribute("aria-pressed", String(theme === "dark"));
  }

  function toggle() {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try {
      if (next === ofSystem()) localStorage.removeItem(NAME); // back to following the system
      else localStorage.setItem(NAME, next);
      apply();
    } catch {
      document.documentElement.dataset.theme = next; // until the page is left
    }
  }

  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", toggle);
  });
})();
