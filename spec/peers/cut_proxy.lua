--- A TCP proxy in this process that counts what goes through it and cuts connections off, in the middle of a byte stream.
--
-- It also counts SSH packets: with AES-GCM, which korv's peers agree on, a packet's length is in the clear.
-- @module spec.peers.cut_proxy

local uv = require "luv"

local cut_proxy = {}
local Proxy = {}
Proxy.__index = Proxy

local NEWKEYS, TAG_BYTES = 21, 16

-- Counts the SSH packets of one direction.
local function packet_counter()
  local left, count, tag, has_banner = "", 0, 0, false
  return function(bytes)
    left = left .. bytes
    if not has_banner then
      local _, last = left:find("\r\n", 1, true)
      if not last then return 0 end
      has_banner, left = true, left:sub(last + 1)
    end
    while #left >= 6 do
      local size = 4 + (">I4"):unpack(left) + tag
      if #left < size then break end
      if tag == 0 and left:byte(6) == NEWKEYS then tag = TAG_BYTES end
      left, count = left:sub(size + 1), count + 1
    end
    return count
  end
end

local function close(handle)
  if not handle:is_closing() then handle:close() end
end

-- As a close does, or, with reset, as a process that died with unread input.
local function cut(link)
  link.is_cut = true
  for _, handle in ipairs { link.near, link.far } do
    local was_reset = link.reset and not handle:is_closing() and pcall(handle.close_reset, handle)
    if not was_reset then close(handle) end
  end
end

local function is_due(link) return link.after and link.up + link.down >= link.after end

local function forward(link, from, to, direction)
  local count = packet_counter()
  local function read(problem, bytes)
    if link.is_cut then return end
    if problem or not bytes then
      close(from)
      close(to)
      return
    end
    if link.after then bytes = bytes:sub(1, link.after - link.up - link.down) end
    link[direction] = link[direction] + #bytes
    link[direction .. "_packets"] = count(bytes)
    if to:is_closing() then return end
    to:write(bytes, function()
      if is_due(link) and not link.is_cut then cut(link) end
    end)
  end
  local function begin() from:read_start(read) end
  begin()
  return begin
end

local function accept(proxy)
  local near, far = uv.new_tcp(), uv.new_tcp()
  proxy.listener:accept(near)
  proxy.connections = proxy.connections + 1
  local link = { proxy = proxy, near = near, far = far, up = 0, down = 0, after = proxy.after, reset = proxy.reset,
                 up_packets = 0, down_packets = 0 }
  proxy.last = link
  if link.after == 0 then return cut(link) end
  local function connect()
    far:connect("127.0.0.1", proxy.port_behind, function(problem)
      if problem then
        close(near)
        close(far)
      elseif not near:is_closing() then
        far:nodelay(true)
        near:nodelay(true)
        forward(link, near, far, "up")
        link.read_far = forward(link, far, near, "down")
      end
    end)
  end
  if not proxy.delay_ms then return connect() end
  local timer = uv.new_timer()
  timer:start(proxy.delay_ms, 0, function()
    timer:close()
    connect()
  end)
end

--- Listens on a free port, or the one given. Fields to set: `after` (bytes of both directions until the next connection is cut;
-- nil: never), `reset` (cut by RST), `delay_ms` (until it goes on), `port_behind`. Fields to read: `connections`, `last` (up and down in
-- bytes, up_packets and down_packets).
-- @int port_behind where it connects to
-- @int[opt] port
function cut_proxy.new(port_behind, port)
  local proxy = setmetatable({ listener = uv.new_tcp(), port_behind = port_behind, connections = 0 }, Proxy)
  assert(proxy.listener:bind("127.0.0.1", port or 0))
  assert(proxy.listener:listen(512, function() accept(proxy) end))
  proxy.port = proxy.listener:getsockname().port
  return proxy
end

--- Cuts the last connection off now.
function Proxy:cut() cut(self.last) end

--- Leaves unread what the last connection's server sends, or reads it again.
-- @bool held
function Proxy:hold(held)
  local link = self.last
  if held then link.far:read_stop() else link.read_far() end
end

--- Stops listening.
function Proxy:close() close(self.listener) end

return cut_proxy
