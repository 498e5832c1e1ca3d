"""What is added to the built pages before they are published."""

import re
from xml.etree import ElementTree

import publish
import pytest

HOST = "https://someone.github.io/some-book"
PAGE = """<html><head><title>T</title>
</head><body><article class="bd-article"><h1>T</h1>
<p><a href="x">Run on Colab</a> · <a href="y">Download</a> of this page, a line that is long enough</p>
<p>Short.</p><p>A few classes have thousands of images &amp; many have a <em>handful</em>; this chapter says what
that does to a network that is trained on all of them alike, and how it is measured.</p></article></body></html>"""


@pytest.fixture
def folder(tmp_path):
    for name in ("book/intro.html", "notebooks/01_one.html", "_static/part.html", "index.html", "search.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PAGE)
    return tmp_path


def test_chapters_and_pages_are_in_the_sitemap(folder):
    publish.publish(folder, HOST + "/")
    found = [e.text for e in ElementTree.parse(folder / "sitemap.xml").iter() if e.tag.endswith("loc")]
    assert found == [f"{HOST}/book/intro.html", f"{HOST}/notebooks/01_one.html"]
    assert (folder / ".nojekyll").is_file() and f"{HOST}/sitemap.xml" in (folder / "robots.txt").read_text()


def test_a_page_gets_its_description_and_address_once(folder):
    publish.publish(folder, HOST)
    once = (folder / "book/intro.html").read_text()
    publish.publish(folder, HOST)
    assert (folder / "book/intro.html").read_text() == once
    assert f'<link rel="canonical" href="{HOST}/book/intro.html">' in once
    (text,) = re.findall('<meta name="description" content="(.*)">', once)
    assert text.startswith("A few classes have thousands of images &amp; many have a handful;") and text.endswith(" …")


def test_the_page_for_lost_visitors_leads_back_from_any_folder(folder):
    publish.publish(folder, HOST)
    links = re.findall('href="([^"]*)"', (folder / "404.html").read_text())
    assert links == [f"{HOST}/index.html", f"{HOST}/search.html"]


@pytest.mark.parametrize("address", ["", "someone.github.io", 'https://a"b'])
def test_what_is_no_address_is_refused(folder, address):
    with pytest.raises(ValueError, match="address of a site"):
        publish.publish(folder, address)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="make book"):
        publish.publish(tmp_path, HOST)
