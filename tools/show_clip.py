"""`hiera-video show-clip`: see hiera_video/commands/show_clip.py."""

from door import enter

if __name__ == "__main__":
    enter("show-clip")
