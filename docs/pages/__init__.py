"""The static site: notes beside the sources' lines, equations beside their tests, and pages to try things on.

notes.py reads *.md, sources.py cuts the files that they explain, markup.py makes HTML, exhibits.py computes what the
interactive pages show, unet_picture.py makes pictures of networks, site.py puts it all into templates/, __main__.py
writes it.
"""

from pathlib import Path

import jinja2

TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                               trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
TEMPLATES.policies["json.dumps_kwargs"] = {}                # else tojson sorts the names of schedules
