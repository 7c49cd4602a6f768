"""How the page looks: one column of text, figures side by side where there is room."""

CSS = """
:root { --ink: #1b1f24; --faint: #8b949e; --quiet: #57606a; --paper: #ffffff; --soft: #f3f5f7;
  --line: #d5dae0; --mark: #2a63b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --faint: #8b95a1; --quiet: #9aa4b0; --paper: #14171b; --soft: #1d2228;
    --line: #343b44; --mark: #7fb0f0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 18px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.4em 0 0.2em; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 2.2em 0 0.5em; padding-top: 0.6em;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8em 0 0.5em; }
p, li { max-width: 76ch; overflow-wrap: break-word; }
li { margin: 0.35em 0; }
.lead { font-size: 1.08rem; }
.explained { color: var(--quiet); }
.figures { display: grid; gap: 18px; margin: 18px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); align-items: start; }
figure { margin: 0; padding: 10px; background: var(--soft); border-radius: 8px; }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
td:first-child { white-space: normal; min-width: 9em; }
pre { overflow-x: auto; padding: 12px; background: var(--soft); border-radius: 8px;
  font-size: 0.8rem; }
summary { cursor: pointer; margin-top: 1.5em; color: var(--mark); }
@media (max-width: 600px) {
  main { padding: 12px 14px 48px; } h1 { font-size: 1.5rem; } ul { padding-left: 1.3em; }
  td:not(.n), th { white-space: normal; min-width: 4.6em; } td:first-child { min-width: 7em; }
}
@media print { figure { break-inside: avoid; } }
"""
