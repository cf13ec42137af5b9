--- What is no message and no handshake, made up at random: for spec/malformed_spec.lua. Each message that comes of this is answered once,
-- with a 400, and its channel goes on. Knows no socket.
-- @module spec.malformed

local malformed = {}

local random = math.random

local function any(list) return list[random(#list)] end

-- Random bytes that begin no gzip member, hold no newline and are no white space alone.
local function noise(most)
  local bytes = { "\x80" }
  for i = 2, random(2, most) do bytes[i] = string.char((random(0, 255))) end
  return (table.concat(bytes):gsub("[\n\x1f]", "\0"))
end

local function request(id, verb, resource, body)
  return ('{"id":%s,"verb":%s,"resource":%s,"body":%s}'):format(id, verb, resource, body)
end

local function with_body(body) return request(random(1000), '"STORE"', '"/echo"', body) end

local KINDS = {
  function() return noise(60) end,
  function() return "{}" end,
  function() return any { "[1,2]", "null", "5", '"GET"', "true", "hello", "}", "]", '"', "\0" } end,
  function() return ('{"id":%d,"verb":"GET"}'):format(random(1000)) end,
  function() return ('{"id":%d,"verb":"STORE","resource":"/echo"}'):format(random(1000)) end,
  function() return request(any { "null", "[]", "{}", "true", ("7"):rep(300) }, '"GET"', '"/hello"', "null") end,
  function() return request(random(1000), any { "5", "null", "[]" }, '"/hello"', "null") end,
  function() return request(random(1000), '"GET"', any { "5", "null", "{}" }, "null") end,
  function()
    local whole = with_body '"text"'
    return whole:sub(1, random(#whole - 1))
  end,
  function() return with_body "1" .. any { "}", "x", with_body "2", ",", "\0" } end,
  function() return with_body(any { "NaN", "01", "1e999", "[1,]", "'a'", "1/**/", "+1", ".5", "1.", "tru", "[,]", '{"a"}', '{"a":}' }) end,
  function() return with_body(any { [["\ud800"]], [["\x"]], [["\u12"]], '"\t"', '"\xff"', '"\xc0\xaf"', '"\xed\xa0\x80"' }) end,
  function() return with_body(any({ "[", '{"a":' }):rep(random(129, 1000))) end,
  function() return with_body("[" .. noise(20) .. "]") end,
}

--- A text that is no request.
-- @treturn string
function malformed.text() return any(KINDS)() end

--- A line of it.
-- @treturn string
function malformed.line() return malformed.text() .. "\n" end

-- gzip --------------------------------------------------------------------------------------------------------------------------------

local CRCS = {}
for i = 0, 255 do
  local crc = i
  for _ = 1, 8 do crc = crc & 1 == 1 and crc >> 1 ~ 0xEDB88320 or crc >> 1 end
  CRCS[i] = crc
end

local function crc32(text)
  local crc = 0xFFFFFFFF
  for i = 1, #text do crc = crc >> 8 ~ CRCS[(crc ~ text:byte(i)) & 255] end
  return crc ~ 0xFFFFFFFF
end

--- A gzip member of it; or one of a request whose checksum or length is wrong.
-- @treturn string
function malformed.member()
  local is_sound = random(2) == 1
  local text = is_sound and malformed.text() or with_body "1"
  local trailer = is_sound and string.pack("<I4I4", crc32(text), #text) or string.pack("<I4I4", random(0, 0xFFFFFFFF), #text + 1)
  return "\x1f\x8b\8\0\0\0\0\0\0\xff\1" .. string.pack("<I2I2", #text, ~#text & 0xFFFF) .. text .. trailer
end

-- Handshakes ------------------------------------------------------------------------------------------------------------------------------

local function flip(bytes, at) return bytes:sub(1, at - 1) .. string.char(random(0, 255)) .. bytes:sub(at + 1) end
local function cut(bytes, at) return bytes:sub(1, at) end
local function grow(bytes, at) return bytes:sub(1, at) .. noise(100) .. bytes:sub(at + 1) end
local function shrink(bytes, at) return bytes:sub(1, at) .. bytes:sub(at + random(100)) end

--- What a client sent in a whole session, with some bytes changed, cut or put in. Unchanged, it would be no handshake either: its keys fit
-- another connection.
-- @tparam {string,...} recorded
-- @treturn string
function malformed.handshake(recorded)
  local bytes = any(recorded)
  for _ = 1, random(0, 4) do bytes = any { flip, cut, grow, shrink }(bytes, random(#bytes + 1) - 1) .. "\0" end
  return bytes
end

return malformed
