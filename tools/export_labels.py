"""`hiera-video export-labels`: see hiera_video/commands/export_labels.py."""

from door import enter

if __name__ == "__main__":
    enter("export-labels")
