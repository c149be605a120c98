"""The driver: owns every segment, admits, renews and ends leases. Import its modules directly."""
