"""Tests of deployment-tracker."""
