--- One line on stderr for each thing worth telling. For people, `2026-11-22T11:13:00.123Z warn message`; for programs, a JSON object
-- with `time`, `level`, `message` and, where there is one, the `request`'s id. What peers send ends up in messages, so nothing in one can
-- begin a line of its own or steer a terminal. Lines are written once a turn of the loop. Where stderr is not read, 1 MiB of them
-- waits; what comes then is dropped, and a later line tells how many were. Knows nothing of what is logged.
-- @module korv.log

local core = require "korv.core"
local escape = require "korv.escape"
local uv = require "luv"

local log = {}

local LEVELS = { debug = 1, info = 2, warn = 3, error = 4 }
local MESSAGE_BYTES = 16384 -- more is cut off
local ID_BYTES = 64

local now = core.log_time
local find = string.find

local write = core.log_write
local threshold, threshold_name = LEVELS.info, "info"
local format_name = "auto"
local request_id -- nil, or a function that returns a request's id as JSON
local worker     -- nil, or its number

-- What follows from these settings: whether lines are JSON, what a line has of the worker, and what access lines have of each peer.
local is_json, worker_text, peer_texts
local access_begin, access_end -- nil: to be made
local access_generation

-- Words --------------------------------------------------------------------------------------------------------------------------------

local cut, one_line, quote = escape.cut, escape.line, escape.quote

local function shown(text) return one_line(cut(text, MESSAGE_BYTES)) end

-- A word of a line of text: without spaces, so that nothing in it passes for another word.
local function word(text)
  if type(text) ~= "string" or text == "" then return "-" end
  if #text <= MESSAGE_BYTES and not find(text, "[^!-~]") then return text end
  return (shown(text):gsub(" ", "\\x20"))
end

-- Lines ----------------------------------------------------------------------------------------------------------------------------------

local function id_text(id) return escape.line(cut(id, ID_BYTES)) end

-- An id is JSON already, and stays what it was where that is short and harmless.
local function id_json(id)
  if #id <= ID_BYTES and not id:find "[^ -~]" then return id end
  return quote(cut(id, ID_BYTES))
end

local function line_of(level, message, id)
  if is_json then
    return ('{"time":"%s","level":"%s","message":%s%s%s}'):format(now(), level, quote(cut(message, MESSAGE_BYTES)),
      id and ',"request":' .. id_json(id) or "", worker_text)
  end
  return ("%s %s%s%s %s"):format(now(), level, worker_text, id and " [" .. id_text(id) .. "]" or "", shown(message))
end

local function emit(level, format, ...)
  if LEVELS[level] < threshold then return end
  local message = select("#", ...) == 0 and tostring(format) or string.format(format, ...)
  write(line_of(level, message, request_id and request_id()))
end

core.log_dropped(function(count)
  return line_of("warn", ("dropped %d lines of the log: they were not read in time"):format(count))
end)

local function peer_json(peer)
  local text = ""
  for _, field in ipairs { { "peer", peer.name }, { "key", peer.fingerprint }, { "address", peer.address } } do
    if field[2] then text = ('%s"%s":%s,'):format(text, field[1], quote(cut(field[2], MESSAGE_BYTES))) end
  end
  return text
end

local function peer_words(peer)
  local name = peer.name and peer.name ~= "" and shown(peer.name) or "-"
  return ("%s %s %s"):format(name, word(peer.fingerprint), word(peer.address))
end

local NOBODY = {}

local function new_peer_texts()
  return setmetatable({}, { __mode = "k", __index = function(texts, peer)
    local text = (is_json and peer_json or peer_words)(peer)
    texts[peer] = text
    return text
  end })
end

local function settle()
  is_json = format_name == "json" or format_name == "auto" and uv.guess_handle(2) ~= "tty"
  worker_text = not worker and "" or (is_json and ',"worker":%d' or " w%d"):format(worker)
  peer_texts, access_end = new_peer_texts(), nil
end

settle()

-- Access: on the way of each request. A concatenation takes a third of the time of string.format -------------------------------------

local VERBS = { GET = "GET", STORE = "STORE", UPDATE = "UPDATE", DELETE = "DELETE" }

local DIGITS, THREE_DIGITS = {}, {}
for n = 0, 999 do DIGITS[n], THREE_DIGITS[n] = ("%d"):format(n), ("%03d"):format(n) end

-- Without the quotes around it.
local function json_text(text)
  if type(text) ~= "string" then return "" end
  if #text <= MESSAGE_BYTES and not find(text, "[^] !#-[^-~]") then return text end
  return quote(cut(text, MESSAGE_BYTES)):sub(2, -2)
end

local function access_json(peer, verb, resource, code, ms, bytes)
  local us = (ms * 1000 + 0.5) // 1 | 0
  return '{"time":"' .. now() .. '","level":"info",' .. peer .. '"verb":"' .. (VERBS[verb] or json_text(verb)) ..
    '","resource":"' .. json_text(resource) .. '","code":' .. (DIGITS[code] or code) ..
    ',"ms":' .. (DIGITS[us // 1000] or us // 1000) .. "." .. THREE_DIGITS[us % 1000] ..
    ',"bytes":' .. (DIGITS[bytes] or bytes) .. access_end
end

local function access_words(peer, verb, resource, code, ms, bytes)
  local tenths = (ms * 10 + 0.5) // 1 | 0
  return now() .. access_begin .. (VERBS[verb] or word(verb)) .. " " .. word(resource) .. " " .. (DIGITS[code] or code) .. " " ..
    (DIGITS[tenths // 10] or tenths // 10) .. "." .. DIGITS[tenths % 10] .. " ms " .. (DIGITS[bytes] or bytes) .. " B " ..
    peer .. access_end
end

local function set_generation(generation)
  access_generation = generation
  access_begin = " info" .. worker_text .. " "
  access_end = generation and (is_json and ',"generation":%d' or " g%d"):format(generation) or ""
  if is_json then access_end = access_end .. worker_text .. "}" end
end

-- For people ---------------------------------------------------------------------------------------------------------------------------

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

--- The line of a request that was answered, at level info:
-- `TIME info GET /users/42 200 1.3 ms 120 B ann SHA256:… 127.0.0.1 g3`, or the same as JSON.
-- @tparam ?table peer `name`, `fingerprint` and `address`, as far as they are known; they are looked at once for each peer
-- @tparam ?string verb
-- @tparam ?string resource
-- @tparam int code
-- @tparam number ms that it took
-- @tparam int bytes of the answer
-- @tparam[opt] int generation of the scripts that answered
function log.access(peer, verb, resource, code, ms, bytes, generation)
  if threshold > LEVELS.info then return end
  if generation ~= access_generation or not access_end then set_generation(generation) end
  write((is_json and access_json or access_words)(peer_texts[peer or NOBODY], verb, resource, code, ms, bytes))
end

--- Sets which messages are written.
-- @tparam[opt] string name `debug`, `info` (the default), `warn` or `error`: the least that is written
-- @treturn string the level that held until now
function log.level(name)
  local before = threshold_name
  if name ~= nil and not LEVELS[name] then
    error(("unknown log level %s: it is debug, info, warn or error"):format(tostring(name)), 2)
  end
  threshold_name = name or before
  threshold = LEVELS[threshold_name]
  return before
end

--- Whether messages of a level are written: where it costs something to find out what to say.
-- @tparam string name as for `log.level`
-- @treturn boolean
function log.enabled(name)
  local level = LEVELS[name]
  if not level then error(("unknown log level %s: it is debug, info, warn or error"):format(tostring(name)), 2) end
  return level >= threshold
end

local FORMATS = { text = true, json = true, auto = true }

--- Sets what lines look like.
-- @tparam[opt] string name `text`, `json`, or `auto` (the default): text where stderr is a terminal, else JSON
-- @treturn string the format that was set until now
function log.format(name)
  local before = format_name
  if name ~= nil and not FORMATS[name] then error(("unknown log format %s: it is text, json or auto"):format(tostring(name)), 2) end
  format_name = name or before
  settle()
  return before
end

--- Has messages carry the id of the request that they are about.
-- @tparam ?function fn returns the id as JSON, or nil where no request runs; nil: none carries one
function log.context(fn)
  if fn ~= nil and type(fn) ~= "function" then error("log.context: give it a function, or nil for none", 2) end
  request_id = fn
end

--- Has each line carry a worker's number.
-- @tparam ?int number nil: none carries one
function log.worker(number)
  if number ~= nil and math.type(number) ~= "integer" then error("log.worker: give it an integer, or nil for none", 2) end
  worker = number
  settle()
end

--- Sends the lines somewhere else.
-- @tparam ?function fn called with each line, without a newline; nil: stderr again
function log.sink(fn) write = fn or core.log_write end

return log
