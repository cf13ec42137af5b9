--- A stream on the client's side: items in the order in which they came, one channel for each stream.
-- @module korv.stream

local core = require "korv.core"
local task = require "korv.task"

local stream = {}

local Stream = {}
Stream.__index = Stream

local GRACE = 1 -- second beyond the stream's timeout, for the server's own 504 to come
local MANY, FEW = 64, 16 -- items that wait: from so many on the channel is not read, from so few on it is again

local function wake(self)
  local resume = self.resume
  self.resume = nil
  if resume then resume() end
end

local function finish(self, ...)
  if self.over then return end
  self.over = table.pack(...)
  self.timer:stop()
  self.client.ended()
  if self.channel then self.channel:close() end
  wake(self)
end

local function describe(self, what) return ("%s %s: %s"):format(self.request.verb, self.request.resource, what) end

local function on_last(self, response)
  if math.type(response.code) ~= "integer" then
    return finish(self, false, describe(self, "what the server answered has no code"), "EPROTO")
  end
  self.code, self.body = response.code, response.body
  if response.code >= 200 and response.code <= 299 then return finish(self) end
  finish(self, false, describe(self, ("%d %s"):format(response.code, core.json.encode(response.body))), "ESTATUS")
end

local function on_message(self, response)
  if response.request_id ~= self.request.id or self.over then return end
  if not response.more then return on_last(self, response) end
  self.last = self.last + 1
  self.items[self.last] = response.body
  if self.last - self.first >= MANY and not self.paused then
    self.paused = true
    self.channel:pause(true)
  end
  wake(self)
end

local function take(self)
  local item = self.items[self.first]
  self.items[self.first] = nil
  self.first = self.first + 1
  if self.paused and self.last - self.first < FEW and not self.over then
    self.paused = false
    self.channel:pause(false)
  end
  return item
end

--- The next item: waits for it.
-- @tparam Stream self
-- @return the item; nil at the end; false, message and name where it failed
function stream.next(self)
  if self.first > self.last and not self.over then
    task.wait(function(resume)
      self.resume = resume
      return function() self:cancel() end
    end, 3)
  end
  if self.first <= self.last then return take(self) end
  local over = self.over
  self.over = {}
  return table.unpack(over, 1, over.n)
end

--- Gives the stream up: the endpoint is cancelled, and the stream has no more items.
function Stream:cancel()
  self.items, self.first, self.last = {}, 1, 0
  finish(self)
end

Stream.__close = Stream.cancel

local function begin(self, client)
  if not client.transport then
    return finish(self, false, describe(self, client.lost and client.lost.message or "not connected"), "ENOTCONN")
  end
  if client.way == "tcpip" then
    return finish(self, false, describe(self, "this server has no streams: it speaks the protocol's first part only"), "EPROTONOSUPPORT")
  end
  local message, name
  self.channel, message, name = client.transport:channel(function(response) on_message(self, response) end, function(code, reason)
    self.channel = nil
    finish(self, false, describe(self, reason), code)
  end)
  if self.channel then
    local ok
    ok, message, name = self.channel:send(self.request)
    if ok then return end
  end
  finish(self, false, describe(self, message), name)
end

--- Begins a stream.
-- @tparam table request the message that asks for it
-- @tparam table client what it needs of the client: `transport`, `way`, `lost`, and the functions `begun` and `ended`
-- @treturn Stream
function stream.open(request, client)
  local self = setmetatable({ request = request, client = client, items = {}, first = 1, last = 0 }, Stream)
  self.timer = core.timer(function() finish(self, false, describe(self, ("no end within %g s"):format(request.timeout)), "ETIMEDOUT") end)
  client.begun()
  begin(self, client)
  if request.timeout and not self.over then self.timer:start(request.timeout + GRACE) end
  return self
end

--- Calls back with each item, and with nil at the end.
-- @tparam Stream self
-- @tparam function callback may wait
-- @treturn Stream
function stream.deliver(self, callback)
  task.spawn(function()
    local closing <close> = self -- luacheck: ignore 211 (where the callback raises)
    local item, message, name = stream.next(self)
    while item ~= nil do
      callback(item, message, name)
      item, message, name = stream.next(self)
    end
    callback(nil)
  end)
  return self
end

return stream
