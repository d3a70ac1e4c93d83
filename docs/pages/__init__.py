"""The static site: notes beside the sources' lines, equations beside their tests, and pages to try things on.

notes.py reads *.md, sources.py cuts the files that they explain, markup.py makes HTML, exhibits.py computes what the
interactive pages show, unet_picture.py makes pictures of networks, site.py puts it together, __main__.py writes it.
"""
