"""`hiera-video report`: see hiera_video/commands/report.py."""

from door import enter

if __name__ == "__main__":
    enter("report")
