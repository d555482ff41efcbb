"""Tests of near."""
