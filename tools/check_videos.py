"""`hiera-video check-videos`: see hiera_video/commands/check_videos.py."""

from door import enter

if __name__ == "__main__":
    enter("check-videos")
