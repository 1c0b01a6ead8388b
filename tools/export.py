"""`hiera-video export`: see hiera_video/commands/export.py."""

from door import enter

if __name__ == "__main__":
    enter("export")
