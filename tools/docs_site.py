"""What the documentation takes from elsewhere in the repository: each thing is written once.

    <!-- from README.md: speed -->    a line of a page that becomes what stands in the README
                                      between <!-- speed:begin --> and <!-- speed:end -->
    ../benchmarks/results/<name>/     the reports there, which the benchmarks wrote, are pages of
                                      the site, with their pictures
    CONTRIBUTING.md                   is a page of the site, too

And it leads from a page of the tutorial to the same page in the other language, from any other page
to the tutorial's first.

mkdocs calls these functions (`hooks` in mkdocs.yml). Links are written as they work in the
repository, where other readers follow them; in the site they lead to those pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
REPORTS = "benchmarks/results"
CONTRIBUTING = "CONTRIBUTING.md"
TUTORIAL = "learn/"
LANGUAGES = {"en": ("English", ""), "ko": ("한국어", "ko/")}
"""What readers choose a language by, and the folder that its pages are in."""


@event_priority(-200)  # after the plugin for languages, which knows nothing of such pages
def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds the pages that are not in docs/."""
    files.append(File.generated(config, CONTRIBUTING, abs_src_path=str(ROOT / CONTRIBUTING)))
    for path in sorted((ROOT / REPORTS).glob("*/*")):
        if path.suffix in (".md", ".png"):
            place = path.relative_to(ROOT).as_posix()
            report = File.generated(config, place, abs_src_path=str(path))
            report.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(report)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts in what a page quotes, and turns its links to pages that lie elsewhere."""
    quotation = re.compile(r"^<!-- from README\.md: (\w+) -->$", re.MULTILINE)
    markdown = quotation.sub(lambda found: of_readme(found[1]), markdown)
    if page.file.src_uri == CONTRIBUTING:
        return markdown.replace("](docs/", "](")
    for place in (f"{REPORTS}/", CONTRIBUTING):
        markdown = markdown.replace(f"](../{place}", f"]({place}")
    return markdown


def on_page_context(context: Any, page: Any, config: Any, **_: Any) -> Any:
    """The links between the languages, relative to the site, so that they work from the disk."""
    place = page.url.removeprefix(LANGUAGES["ko"][1])
    place = place if place.startswith(TUTORIAL) else f"{TUTORIAL}index.html"
    config.extra["alternate"] = [
        {"name": name, "link": folder + place, "lang": language}
        for language, (name, folder) in LANGUAGES.items()
    ]
    return context


@event_priority(-200)  # after the plugin for languages has put together what can be found
def on_post_build(config: Any, **_: Any) -> None:
    """What can be found without a server: the plugin `offline` would know only one language."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


def of_readme(name: str) -> str:
    """What stands between a pair of markers in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    if found is None:
        raise PluginError(f"README.md: expected markers {name}:begin and {name}:end")
    return found[1]
