"""What the fork server imports first, so that it ends with the launcher even while it imports the rest."""

from implicit_slate.processes import be_killed_with_parent

be_killed_with_parent()
