"""`hiera-video review`: see hiera_video/commands/review.py."""

from door import enter

if __name__ == "__main__":
    enter("review")
