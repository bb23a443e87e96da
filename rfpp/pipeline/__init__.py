"""The steps from data to grades, found again by what they depend on."""
