--- korv's version.
-- @module korv.version
return "0.3.0"
