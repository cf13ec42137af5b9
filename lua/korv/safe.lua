--- Text from elsewhere, made harmless where people read it: nothing in it begins a line of its own, steers a terminal or turns the order
-- of what is shown around. Knows nothing of where it is shown.
-- @module korv.safe

local encode = require "korv.core".json.encode

local safe = {}

local ESCAPED = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local function escape_bytes(bytes)
  return ESCAPED[bytes] or bytes:gsub(".", function(byte) return ("\\x%02x"):format(byte:byte()) end)
end

local function escape_character(character) return ("\\u%04x"):format(utf8.codepoint(character)) end

-- Apart from ASCII's control characters: those of U+0080 to U+009F, line separators and changes of direction.
local function escape_steering(text, escape)
  if not text:find "[\xC2\xD8\xE2]" then return text end
  return (text:gsub("\xC2[\x80-\x9F]", escape):gsub("\xD8\x9C", escape):gsub("\xE2\x80[\x8E\x8F\xA8-\xAE]", escape)
    :gsub("\xE2\x81[\xA6-\xA9]", escape))
end

local function escape_broken(text)
  return utf8.len(text) and text or text:gsub("[\x80-\xFF]", escape_bytes)
end

--- The beginning of a text, on the boundary of a character; what is cut off is told.
-- @tparam string text
-- @tparam int most bytes
-- @treturn string
function safe.cut(text, most)
  if #text <= most then return text end
  local head = text:sub(1, utf8.offset(text, 0, most + 1) - 1)
  return ("%s… (%d bytes)"):format(head, #text)
end

--- Any text as a part of one line.
-- @tparam string text
-- @treturn string
function safe.line(text)
  text = text:gsub("%c", escape_bytes)
  return escape_broken((escape_steering(text, escape_bytes)))
end

--- JSON text, which stays the same JSON.
-- @tparam string text as it comes from an encoder: control characters below U+0020 are escaped already
-- @treturn string
function safe.json(text)
  text = escape_steering(text, escape_character)
  return (text:gsub("\127", "\\u007f"))
end

--- A JSON string; what is no UTF-8 is in it as in a line.
-- @tparam string text
-- @treturn string
function safe.quote(text) return safe.json(encode(escape_broken(text))) end

return safe
