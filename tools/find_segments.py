"""`hiera-video find-segments`: see hiera_video/commands/find_segments.py."""

from door import enter

if __name__ == "__main__":
    enter("find-segments")
