--- One line on stderr for each thing worth telling: `2026-11-22T11:13:00Z warn message`. What peers send ends up in messages, so
-- nothing in one can begin a line of its own or steer a terminal. Knows nothing of what is logged.
-- @module korv.log

local log = {}

local LEVELS = { debug = 1, info = 2, warn = 3, error = 4 }
local MESSAGE_BYTES = 16384 -- more is cut off

local function write_stderr(line) io.stderr:write(line .. "\n") end

local threshold = "info"
local write = write_stderr

local ESCAPED = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local function escape_bytes(bytes)
  return ESCAPED[bytes] or bytes:gsub(".", function(byte) return ("\\x%02x"):format(byte:byte()) end)
end

local function cut(text)
  if #text <= MESSAGE_BYTES then return text end
  local head = text:sub(1, utf8.offset(text, 0, MESSAGE_BYTES + 1) - 1)
  return ("%s… (%d bytes)"):format(head, #text)
end

-- Apart from ASCII's control characters: those of U+0080 to U+009F, line separators and changes of direction, and bytes that are no UTF-8.
local function one_line(text)
  text = text:gsub("%c", escape_bytes):gsub("\xC2[\x80-\x9F]", escape_bytes)
  text = text:gsub("\xE2\x80[\xA8-\xAE]", escape_bytes):gsub("\xE2\x81[\xA6-\xA9]", escape_bytes)
  if not utf8.len(text) then text = text:gsub("[\x80-\xFF]", escape_bytes) end
  return text
end

local function emit(level, format, ...)
  if LEVELS[level] < LEVELS[threshold] then return end
  local message = select("#", ...) == 0 and tostring(format) or string.format(format, ...)
  write(("%s %s %s"):format(os.date("!%Y-%m-%dT%H:%M:%SZ"), level, one_line(cut(message))))
end

--- Tells what only somebody in search of a fault wants to know.
-- @tparam string format as in `string.format`; without further arguments it is the message as it stands
-- @param ... its arguments
function log.debug(format, ...) emit("debug", format, ...) end

--- Tells what happened as it should. Arguments as in `log.debug`.
-- @tparam string format
-- @param ...
function log.info(format, ...) emit("info", format, ...) end

--- Tells what went wrong and was dealt with. Arguments as in `log.debug`.
-- @tparam string format
-- @param ...
function log.warn(format, ...) emit("warn", format, ...) end

--- Tells what went wrong and needs somebody. Arguments as in `log.debug`.
-- @tparam string format
-- @param ...
function log.error(format, ...) emit("error", format, ...) end

--- Sets which messages are written.
-- @tparam[opt] string name `debug`, `info` (the default), `warn` or `error`: the least that is written
-- @treturn string the level that held until now
function log.level(name)
  local before = threshold
  if name ~= nil and not LEVELS[name] then
    error(("unknown log level %s: it is debug, info, warn or error"):format(tostring(name)), 2)
  end
  threshold = name or threshold
  return before
end

--- Sends the lines somewhere else.
-- @tparam ?function fn called with each line, without a newline; nil: stderr again
function log.sink(fn) write = fn or write_stderr end

return log
