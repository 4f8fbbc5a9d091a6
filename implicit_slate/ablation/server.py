"""The fork server imports this first, so that it ends with the launcher even while it is importing the rest."""

from implicit_slate.processes import be_killed_with_parent

be_killed_with_parent()
