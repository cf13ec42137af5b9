--- A spec's hand on raw_channel.py: channels to a server, on which any bytes can be put, and what comes back is checked and told.
--
-- Every message that comes is held to what holds for each of them: one JSON object without white space, gzip or a line as a whole,
-- the four fields of a response. Whatever else a response should be is the spec's business.
-- @module spec.peers.raw_channel

local cjson = require "cjson"
local support = require "spec.support"

local TIMEOUT = 10 -- seconds: for an answer

local raw_channel = {}
local Peer, Channel = {}, {}
Peer.__index, Channel.__index = Peer, Channel

--- The two pairings that peers use: part 1's, and ours.
raw_channel.pairings = {
  { name = "direct-tcpip, gzip", way = "tcpip", encoding = "gzip" },
  { name = "subsystem, lines", way = "subsystem:korv", encoding = "line" },
}

--- All ways and encodings.
raw_channel.every_pairing = {
  raw_channel.pairings[1], raw_channel.pairings[2],
  { name = "direct-tcpip, lines", way = "tcpip", encoding = "line" },
  { name = "subsystem, gzip", way = "subsystem:korv", encoding = "gzip" },
}

--- Connects to a server on this machine.
-- @tparam table server from spec.support
-- @tparam[opt] table options `key`: its path; `user`
-- @treturn Peer or nil and the reason
function raw_channel.connect(server, options)
  options = options or {}
  local process = support.start({ support.python, support.root .. "/spec/peers/raw_channel.py", "--port", tostring(server.port),
    "--key", options.key or support.key "client", "--user", options.user or "anybody", "--folder", support.path "." },
    { stdin = true })
  local peer = setmetatable({ process = process, count = 0, packed = {} }, Peer)
  local hello = peer:answer(TIMEOUT)
  if hello.error then
    process:wait()
    return nil, hello.error
  end
  return peer
end

--- The peer's next line. @local
function Peer:answer(seconds)
  local line = self.process:line(seconds + TIMEOUT)
  if not line then
    self.process:kill()
    error(self.process:describe "did not answer", 2)
  end
  return cjson.decode(line)
end

local function hex(bytes)
  return (bytes:gsub(".", function(char) return ("%02x"):format(char:byte()) end))
end

--- Has raw_channel.py do one thing, and returns what it says. Long bytes travel by file.
-- @tparam table command
function Peer:order(command)
  local bytes = command.bytes
  if bytes and #bytes > 65536 then
    command.file, command.bytes = support.write("payload", bytes), nil
  elseif bytes then
    command.bytes = hex(bytes)
  end
  command.timeout = (command.timeout or TIMEOUT) * support.patience
  self.process:write(cjson.encode(command) .. "\n")
  local answer = self:answer(command.timeout)
  if answer.error then
    error(("raw_channel.py could not %s: %s"):format(command["do"], answer.error), 2)
  end
  return answer
end

--- One gzip member of the text.
-- @string text
function Peer:gzip(text)
  self.packed[text] = self.packed[text] or self:pack(text)
  return self.packed[text]
end

--- As gzip, but remembering nothing. @local
function Peer:pack(text)
  local path = support.path "member"
  self:order { ["do"] = "pack", bytes = text, to = path }
  return support.read(path)
end

--- Opens a channel, or tries to.
-- @string way `tcpip`, `subsystem:NAME`, `exec:COMMAND`, `shell`, `type:NAME`
-- @tparam[opt] table options `encoding` of what channel:request sends; `window`, `max_packet`, `host`, `port`
-- @treturn Channel or nil, reason, code
function Peer:try_open(way, options)
  self.count = self.count + 1
  local command = { ["do"] = "open", channel = tostring(self.count), way = way }
  for name, value in pairs(options or {}) do
    command[name] = value
  end
  local answer = self:order(command)
  if not answer.opened then
    return nil, answer.reason, answer.code
  end
  return setmetatable({ peer = self, name = command.channel, encoding = command.encoding or "line" }, Channel)
end

--- Opens a channel.
function Peer:open(way, options)
  local channel, reason = self:try_open(way, options)
  return channel or error(("the server refused %s: %s"):format(way, reason), 2)
end

--- Opens the channel of a pairing.
function Peer:open_as(pairing)
  return self:open(pairing.way, { encoding = pairing.encoding })
end

--- Speaks something else than SSH on a connection of its own. Returns what was said back, and whether the server hung up.
function Peer:garbage(bytes, timeout)
  local answer = self:order { ["do"] = "garbage", bytes = bytes, timeout = timeout }
  return answer.bytes:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end), answer.hung_up
end

function Channel:order(what, command)
  command = command or {}
  command["do"], command.channel = what, self.name
  return self.peer:order(command)
end

--- Sends bytes as exactly one SSH data packet.
function Channel:send(bytes)
  self:order("send", { bytes = bytes })
end

--- Sends bytes cut into packets at these offsets.
function Channel:send_split(bytes, at)
  self:order("split", { bytes = bytes, at = at })
end

--- Sends bytes as the server lets them through, and does not wait for that.
function Channel:stream(bytes)
  self:order("stream", { bytes = bytes })
end

--- A text as a message of the channel's encoding, or of another one.
function Channel:message(text, encoding)
  return (encoding or self.encoding) == "gzip" and self.peer:gzip(text) or text .. "\n"
end

--- Sends texts, each as one message in one packet.
function Channel:request(...)
  for _, text in ipairs { ... } do
    self:send(self:message(text))
  end
end

function Channel:eof()
  self:order "eof"
end

function Channel:pause()
  self:order "pause"
end

function Channel:resume()
  self:order "resume"
end

local FIELDS = { "id", "request_id", "code", "body" }

local function check(message)
  local raw = message.fields
  for name, path in pairs(message.files) do
    raw[name] = support.read(path)
  end
  local fault = message.fault ~= cjson.null and message.fault
  for _, name in ipairs(FIELDS) do
    fault = fault or not raw[name] and "no " .. name
  end
  local names = 0
  for _ in pairs(raw) do
    names = names + 1
  end
  if fault or names ~= #FIELDS then
    error(("not a response as the protocol has it: %s\n%s"):format(fault or "other fields", message.text), 0)
  end
  message.code, message.request_id, message.body, message.time = math.tointeger(tonumber(raw.code)), raw.request_id, raw.body, raw.id
  message.one_packet = message.alone and message.first == message.last
  return message
end

local function told(answer)
  if answer.fault ~= cjson.null then
    error("what came is no message: " .. answer.fault, 0)
  end
  for _, message in ipairs(answer.messages) do
    check(message)
  end
  answer.messages.events = answer.events
  answer.messages.packets = answer.packets
  answer.messages.unfinished = answer.unfinished
  return answer.messages
end

--- The next messages, exactly so many. Each has code (a number), request_id, body and time (JSON text, as it stood), encoding, alone (it
-- shares no packet with another) and one_packet (alone in a single one). The list has the channel's `events` and all `packets`' lengths.
-- @int n
-- @number[opt] timeout in seconds
function Channel:expect(n, timeout)
  local messages = told(self:order("expect", { messages = n, timeout = timeout }))
  if #messages < n then
    error(("%d of %d messages came; the channel: %s"):format(#messages, n, table.concat(messages.events, ", ")), 2)
  end
  return messages
end

--- Sends a text as one message in one packet and returns the next message.
function Channel:ask(text)
  self:request(text)
  return self:expect(1)[1]
end

--- All further messages until the server has closed the channel: an error where it doesn't, or the connection is lost.
function Channel:closed(timeout)
  local messages = told(self:order("closed", { timeout = timeout }))
  local last = messages.events[#messages.events]
  if last ~= "close" or messages.unfinished then
    error(("the server did not close the channel as it should: %s"):format(last or "it is open"), 2)
  end
  return messages
end

--- Says that no more will come, and returns all further messages until the server has closed.
function Channel:finish()
  self:eof()
  return self:closed()
end

--- Closes it from this side; returns all further messages.
function Channel:close()
  return told(self:order "close")
end

--- The text of a request. Every part but the verb and the resource is JSON text, put in as it stands.
-- @string id
-- @string verb
-- @string resource
-- @string[opt="null"] body
function raw_channel.text(id, verb, resource, body)
  return ('{"id":%s,"verb":"%s","resource":"%s","body":%s}'):format(id, verb, resource, body or "null")
end

--- The value of a message's body.
-- @tparam table message
function raw_channel.value(message)
  return cjson.decode(message.body)
end

return raw_channel
