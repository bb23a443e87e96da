"""The steps from data to grades. Finished steps are found again by their inputs."""
