"""The tooling of the executable book: run chapters, check their sources, render the pages.

``python -m radio_utils.book --help`` lists the commands. Each step is a module:

``project``   where things are, and the repository's address
``check``     what a chapter's source must look like
``execute``   chapters through papermill, with a time limit, cached by everything that they depend on
``render``    the staging tree and the html
``status``    the page that says what ran where
"""

from radio_utils.book.project import BookError, Project

__all__ = ["BookError", "Project"]
