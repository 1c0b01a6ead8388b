"""`hiera-video predict`: see hiera_video/commands/predict.py."""

from door import enter

if __name__ == "__main__":
    enter("predict")
