"""`hiera-video check-videos`, from a checkout: see hiera_video/commands/check_videos.py."""

from door import enter

if __name__ == "__main__":
    enter("check-videos")
