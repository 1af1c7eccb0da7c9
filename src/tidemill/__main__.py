"""``python -m tidemill`` is the command ``tidemill``."""

from tidemill.app.cli import main

if __name__ == "__main__":
    main()
