"""Pages in a real browser without a screen: scripts that click, and what they find."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# In a script: `await until(() => condition)`, and `press(key)`, `clickAt(element, x, y)` with x and
# y as parts of its width and height, which goes to what is on top there.
HELPERS = """
const until = async condition => {
  for (let i = 0; i < 400 && !condition(); i++) await new Promise(done => setTimeout(done, 25));
  if (!condition()) throw new Error('never: ' + condition);
};
const press = key => document.body.dispatchEvent(
  new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
const clickAt = (element, x, y) => {
  element.scrollIntoView({block: 'center'});
  const box = element.getBoundingClientRect();
  const at = {clientX: box.left + x * box.width, clientY: box.top + y * box.height};
  document.elementFromPoint(at.clientX, at.clientY).dispatchEvent(
    new MouseEvent('click', {...at, bubbles: true, cancelable: true}));
};
"""


def run_script(page: Path, script: str, *, width: int = 1400, height: int = 1000) -> Any:
    """Returns what the body of an async function returns in a page, which it may click."""
    copy = page.with_name(f"{page.stem}_script.html")
    wrapped = f"""<script>{HELPERS}
    addEventListener('load', async () => {{
      let found;
      try {{ found = {{value: await (async () => {{ {script} }})()}}; }}
      catch (error) {{ found = {{error: String(error.stack)}}; }}
      const out = document.createElement('pre');
      out.id = 'found';
      out.textContent = JSON.stringify(found);
      document.body.replaceChildren(out);
    }});</script>"""
    copy.write_text(page.read_text().replace("</body>", f"{wrapped}</body>"))
    out = _chromium(copy, "--dump-dom", width=width, height=height)
    text = re.search(r'<pre id="found">(.*?)</pre>', out, re.S)
    assert text is not None, out[-2000:]
    found = json.loads(html.unescape(text[1]))
    assert "error" not in found, found["error"]
    return found.get("value")


def screenshot(page: Path, out: Path, *, width: int = 1400, height: int = 1000) -> None:
    """Writes a PNG of a page."""
    _chromium(page, f"--screenshot={out}", width=width, height=height)


def _chromium(page: Path, *arguments: str, width: int, height: int) -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--window-size={width},{height}", "--virtual-time-budget=20000", *arguments,
        page.absolute().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout
