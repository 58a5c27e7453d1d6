"""Programs that show agentfield at work. They are run by the tests, and are not part of the package."""
