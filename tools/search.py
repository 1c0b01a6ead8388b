"""`hiera-video search`: see hiera_video/commands/search.py."""

from door import enter

if __name__ == "__main__":
    enter("search")
