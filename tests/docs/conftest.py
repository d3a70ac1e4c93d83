import pytest

from docs.pages import site


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """The folder of a site whose swiss roll was hardly trained."""
    folder = tmp_path_factory.mktemp("site")
    for name, content in site.build(steps=2).items():
        (folder / name).write_bytes(content)
    return folder
