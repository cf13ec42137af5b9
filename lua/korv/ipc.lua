--- Messages between the supervisor and a worker: one JSON object a line over a pipe, a TCP connection beside some of them. Knows what a
-- message looks like, and not what any of them means.
-- @module korv.ipc

local core = require "korv.core"
local uv = require "luv"

local Ipc = {}
Ipc.__index = Ipc

local LINE_BYTES = 1024 * 1024   -- of a message
local UNSENT_BYTES = 1024 * 1024 -- that queue for a peer that does not read

local function finish(self, reason, name)
  if self.over then return end
  self:close()
  self.on_end(reason, name)
end

local function deliver(self, line)
  local message, problem = core.json.decode(line)
  if type(message) == "table" then
    self.on_message(message)
  else
    finish(self, "it sent what is no message: " .. (problem or "a JSON object is one"))
  end
end

-- The next whole line at hand. What was taken is not looked at again, even where it makes on_message raise.
local function next_line(self)
  local stop = self.text:find("\n", self.at, true)
  if (stop or #self.text + 1) - self.at > LINE_BYTES then return finish(self, "it sent a message of more than 1 MiB") end
  if not stop then return nil end
  local line = self.text:sub(self.at, stop - 1)
  self.at = stop + 1
  return line
end

local function take_connections(self)
  while not self.over and self.pipe:pending_count() > 0 do
    local tcp = uv.new_tcp()
    local ok, problem = self.pipe:accept(tcp)
    if not ok then
      tcp:close()
      return finish(self, "a connection that it sent cannot be taken: " .. tostring(problem))
    end
    self.on_handle(tcp)
  end
end

local function on_read(self, problem, bytes)
  self.text, self.at = self.text:sub(self.at) .. (bytes or ""), 1
  if not bytes then
    if problem or self.text ~= "" then return finish(self, problem or "it ended within a message") end
    return finish(self, "it ended", "EOF")
  end
  if self.on_handle then take_connections(self) end
  while not self.over do
    local line = next_line(self)
    if not line then return end
    deliver(self, line)
  end
end

--- Speaks over a pipe that is open; it belongs to what is returned.
-- @tparam uv_pipe_t pipe made by `uv.new_pipe(true)`
-- @tparam table events the functions `on_message(message)`; `on_end(reason, name)`, called once unless `close` was called before, with the
-- name `EOF` where nothing is wrong but that the other end is gone; and, where connections are expected, `on_handle(tcp)`: each comes
-- before the message that it was sent with, and is the callee's to close
-- @treturn Ipc
local function open(pipe, events)
  local self = setmetatable({
    pipe = pipe, text = "", at = 1, over = false,
    on_message = events.on_message, on_handle = events.on_handle, on_end = events.on_end,
  }, Ipc)
  pipe:read_start(function(problem, bytes) on_read(self, problem, bytes) end)
  return self
end

--- Sends a message. A peer that leaves more than 1 MiB unread counts as dead: `on_end` is called.
-- @tparam table message
-- @tparam[opt] uv_tcp_t handle a connection that goes with it
-- @tparam[opt] function sent called once with nil or a problem, when the handle may be closed; never where nil is returned
-- @treturn ?boolean true
-- @treturn ?string message
-- @treturn ?string name
function Ipc:send(message, handle, sent)
  local text, problem, name = core.json.encode(message)
  if not text then return nil, problem, name end
  if #text > LINE_BYTES then return nil, "a message of more than 1 MiB cannot be sent", "E2BIG" end
  if self.over then return nil, "the other end is gone", "EPIPE" end
  local function written(failed)
    if failed then finish(self, failed) end
    if sent then sent(failed) end
  end
  local ok
  if handle then
    ok, problem, name = self.pipe:write2(text .. "\n", handle, written)
  else
    ok, problem, name = self.pipe:write(text .. "\n", written)
  end
  if not ok then
    finish(self, problem)
    return nil, problem, name
  end
  if self:unsent() > UNSENT_BYTES then finish(self, "it does not read what it is sent") end
  return true
end

--- How much waits for the other end to read.
-- @treturn int bytes
function Ipc:unsent() return self.pipe:get_write_queue_size() end

--- Ends it. What is unsent is not sent.
function Ipc:close()
  self.over = true
  if not self.pipe:is_closing() then self.pipe:close() end
end

return open
