"""What the lessons need besides the library: widgets, exercises with their graders, the classroom."""
