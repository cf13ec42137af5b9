--- Text that others wrote, made safe to show: nothing in it begins a line of its own or steers a terminal. Knows nothing of where it is
-- shown.
-- @module korv.escape

local escape = {}

local NAMED = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local function bytes_escaped(bytes)
  return NAMED[bytes] or bytes:gsub(".", function(byte) return ("\\x%02x"):format(byte:byte()) end)
end

local function character_escaped(character) return ("\\u%04x"):format(utf8.codepoint(character)) end

-- Apart from ASCII's control characters: those of U+0080 to U+009F, line separators and changes of direction.
local function steering_escaped(text, escaped)
  return text:gsub("\xC2[\x80-\x9F]", escaped):gsub("\xE2\x80[\xA8-\xAE]", escaped):gsub("\xE2\x81[\xA6-\xA9]", escaped)
end

--- Makes UTF-8 of any text.
-- @tparam string text
-- @treturn string where it was none, its bytes that are not ASCII are written as `\xff`
function escape.broken(text)
  return utf8.len(text) and text or (text:gsub("[\x80-\xFF]", bytes_escaped))
end

--- Makes one line of any text.
-- @tparam string text
-- @treturn string UTF-8 without a newline or a control character
function escape.line(text)
  text = text:gsub("%c", bytes_escaped)
  return escape.broken((steering_escaped(text, bytes_escaped)))
end

--- Escapes what steers a terminal in JSON, whose meaning stays the same.
-- @tparam string text JSON; newlines between its tokens stay
-- @treturn string
function escape.json(text)
  text = steering_escaped(text, character_escaped)
  return (text:gsub("\127", "\\u007f"))
end

return escape
