"""What several test folders share: stand-ins for processes that a test does not want to pay for."""
