"""`python -m data_modules.rendering`: the same as `implicit-slate data render`."""

import sys

from data_modules.rendering import main
from implicit_slate.errors import UserError

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
