#!/bin/sh
echo intact
