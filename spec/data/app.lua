--- What the specs call: each endpoint does one thing that a client may meet.
local korv = require "korv"

local function echo(request)
  return 200, request.body
end

-- Text that deflate can hardly shorten: six bits to a character.
local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"

local function noise(length)
  local random, text = 12345, {}
  for i = 1, length do
    random = (random * 1103515245 + 12345) % 2147483648
    local at = random // 65536 % 64 + 1
    text[i] = ALPHABET:sub(at, at)
  end
  return table.concat(text)
end

local RETURNS = {
  ["/nothing"] = function() end,
  ["/function"] = function() return 200, print end,
  ["/function-inside"] = function() return 200, { items = { {}, {}, { when = print } } } end,
  ["/mixed"] = function() return 200, { list = { 1, 2, name = "three" } } end,
  ["/nan"] = function() return 200, { { ratio = 0 / 0 } } end,
  ["/not-utf8"] = function() return 200, { name = "\xff\xfe" } end,
  ["/code-99"] = function() return 99, "too low" end,
  ["/code-600"] = function() return 600, "too high" end,
  ["/code-text"] = function() return "200", "no number" end,
  ["/code-half"] = function() return 200.5, "no integer" end,
  ["/code-204"] = function() return 204 end,
  ["/code-599"] = function() return 599, "the last one" end,
  ["/error"] = function() error "boom" end,
  ["/error-table"] = function() error { reason = "a table" } end,
  ["/error-nil"] = function() error() end,
}

return function(app)
  app:get("/hello", function()
    return 200, { msg = "Hello World!" }
  end)

  for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
    app:add_callback(verb, "/echo", echo)
  end

  app:get("/slow", function(request)
    korv.sleep(0.2)
    return 200, request.body
  end)

  app:get("/noise", function(request)
    return 200, noise(request.body)
  end)

  app:store("/length", function(request)
    return 200, #request.body
  end)

  for resource, endpoint in pairs(RETURNS) do
    app:get(resource, endpoint)
  end
end
