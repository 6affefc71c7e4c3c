"""Video and image files: what they hold, and exactly the frames asked for."""
