"""What several test files share: small models, data sets, faults, stand-ins."""
