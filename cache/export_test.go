package cache

// AwaitFlights waits until no load runs. Nobody may start one meanwhile.
func (c *Cache[K, L, V]) AwaitFlights() { c.loads.Wait() }
